"""What a model still knows: lm-eval's tasks and perplexity, base against pruned.

`tasks` says which tasks a name stands for, `run` evaluates the models one after the other,
`worker` is the process that does one of them, `collect` turns its files into the report's part.
"""
