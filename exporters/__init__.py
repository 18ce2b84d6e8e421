"""Deployment formats: one file per exporter."""
