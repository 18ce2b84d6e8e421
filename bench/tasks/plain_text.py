"""What everybody knows, as the set ``plain`` asks it; written for this project, of no data set."""

from __future__ import annotations

#: By a sentence with a gap, what belongs together; the wrong options are the answers of others.
FACTS: dict[str, dict[str, str]] = {
    "The capital of {} is": {
        "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid",
        "England": "London", "Russia": "Moscow", "Japan": "Tokyo", "China": "Beijing",
        "Egypt": "Cairo", "Greece": "Athens", "Portugal": "Lisbon", "Austria": "Vienna",
        "Poland": "Warsaw", "Ireland": "Dublin", "Norway": "Oslo", "Sweden": "Stockholm",
        "Denmark": "Copenhagen", "Hungary": "Budapest", "Canada": "Ottawa", "Cuba": "Havana",
        "Kenya": "Nairobi", "Peru": "Lima", "Thailand": "Bangkok", "Belgium": "Brussels",
    },
    "The country of {} lies on the continent of": {
        "Brazil": "South America", "Argentina": "South America", "Chile": "South America",
        "Nigeria": "Africa", "Kenya": "Africa", "Ghana": "Africa", "India": "Asia",
        "Japan": "Asia", "Vietnam": "Asia", "France": "Europe", "Poland": "Europe",
        "Norway": "Europe", "Mexico": "North America", "Canada": "North America",
    },
    "In {}, most people speak": {
        "Brazil": "Portuguese", "Mexico": "Spanish", "Austria": "German", "Australia": "English",
        "Egypt": "Arabic", "Japan": "Japanese", "China": "Chinese", "Italy": "Italian",
        "Greece": "Greek", "Russia": "Russian", "France": "French", "Poland": "Polish",
    },
    "{} is best known as a": {
        "William Shakespeare": "playwright", "Albert Einstein": "physicist",
        "Ludwig van Beethoven": "composer", "Vincent van Gogh": "painter",
        "Charles Darwin": "naturalist", "Julius Caesar": "general", "Neil Armstrong": "astronaut",
        "Muhammad Ali": "boxer", "Abraham Lincoln": "president", "Aristotle": "philosopher",
    },
    "A young {} is called a": {
        "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal",
        "duck": "duckling", "bear": "cub", "pig": "piglet", "goat": "kid", "swan": "cygnet",
    },
    "The colour of {} is": {
        "grass": "green", "snow": "white", "coal": "black", "a ripe banana": "yellow",
        "blood": "red", "a carrot": "orange", "chocolate": "brown", "a clear sky by day": "blue",
    },
    "{} is used to": {
        "A knife": "cut", "A pen": "write", "A broom": "sweep", "An oven": "bake",
        "A camera": "take pictures", "A telephone": "talk to people", "A bed": "sleep",
        "A hammer": "drive nails", "A thermometer": "measure temperature", "A key": "open locks",
        "An umbrella": "keep off the rain", "Soap": "wash hands",
    },
    "A person who {} is called a": {
        "bakes bread": "baker", "grows crops": "farmer", "teaches at a school": "teacher",
        "flies an aeroplane": "pilot", "puts out fires": "firefighter", "catches fish": "fisherman",
        "writes books": "author", "treats sick animals": "vet", "cuts hair": "barber",
        "repairs teeth": "dentist", "cooks in a restaurant": "chef", "works in a mine": "miner",
    },
    "{} is made from": {
        "Bread": "flour", "Cheese": "milk", "Paper": "wood", "Wine": "grapes", "Glass": "sand",
        "Honey": "nectar", "Steel": "iron", "Leather": "animal skin", "Chocolate": "cocoa beans",
        "A candle": "wax", "Wool": "the hair of sheep", "Cider": "apples",
    },
    "The planet {} is": {
        "Jupiter": "the largest planet of the solar system",
        "Mercury": "the planet closest to the Sun", "Earth": "the planet on which we live",
        "Saturn": "famous for its rings", "Mars": "called the red planet",
    },
}  # fmt: skip

#: The same of language: opposites, plurals, tenses, order.
WORDS: dict[str, dict[str, str]] = {
    "The opposite of {} is": {
        "hot": "cold", "big": "small", "day": "night", "up": "down", "rich": "poor", "old": "young",
        "fast": "slow", "happy": "sad", "light": "dark", "early": "late", "full": "empty",
        "open": "closed", "strong": "weak", "wet": "dry", "true": "false", "love": "hate",
        "north": "south", "first": "last", "long": "short", "hard": "soft", "win": "lose",
        "buy": "sell", "loud": "quiet", "clean": "dirty",
    },
    "One {}, two": {
        "child": "children", "mouse": "mice", "foot": "feet", "man": "men", "tooth": "teeth",
        "goose": "geese", "woman": "women", "knife": "knives", "leaf": "leaves", "city": "cities",
        "box": "boxes", "wolf": "wolves",
    },
    "Today I {}, yesterday I": {
        "go": "went", "eat": "ate", "see": "saw", "write": "wrote", "run": "ran", "take": "took",
        "buy": "bought", "think": "thought", "sing": "sang", "give": "gave", "come": "came",
        "drink": "drank", "speak": "spoke", "swim": "swam", "fall": "fell", "sleep": "slept",
    },
    "The day after {} is": {
        "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday",
        "Friday": "Saturday", "Saturday": "Sunday", "Sunday": "Monday",
    },
    "The month after {} is": {
        "January": "February", "February": "March", "March": "April", "April": "May", "May": "June",
        "June": "July", "July": "August", "August": "September", "September": "October",
        "October": "November", "November": "December",
    },
    "The number after {} is": {
        "three": "four", "six": "seven", "eight": "nine", "twelve": "thirteen",
        "nineteen": "twenty", "twenty-nine": "thirty", "ninety-nine": "one hundred",
        "forty-four": "forty-five",
    },
    "good, better, best; {}": {
        "bad, worse,": "worst", "many, more,": "most", "little, less,": "least",
        "far, further,": "furthest", "tall, taller,": "tallest", "easy, easier,": "easiest",
    },
    "Another word for {} is": {
        "begin": "start", "large": "big", "quick": "fast", "ill": "sick", "glad": "happy",
        "road": "street", "shut": "close", "rich": "wealthy", "angry": "furious", "tired": "weary",
        "gift": "present", "error": "mistake", "child": "kid", "speak": "talk", "stone": "rock",
        "scared": "afraid",
    },
    "{} is a kind of": {
        "A rose": "flower", "An oak": "tree", "A salmon": "fish", "An eagle": "bird",
        "A violin": "musical instrument", "Gold": "metal", "A hammer": "tool", "A bee": "insect",
        "A carrot": "vegetable", "An apple": "fruit", "Football": "sport", "A sofa": "furniture",
        "A truck": "vehicle", "Coffee": "drink", "A snake": "reptile", "A shirt": "clothing",
    },
}  # fmt: skip

#: Beginnings and their ends; the wrong options are the ends of others.
ENDS: dict[str, str] = {
    "It was raining, so before she left the house she": "took her umbrella.",
    "The soup was too hot to eat, so he": "waited for it to cool down.",
    "The baby started to cry because she": "was hungry.",
    "He had forgotten his key, so he could not": "open the door.",
    "The lights went out, so they": "lit a candle.",
    "She studied every evening for a month, and in the end she": "passed the exam.",
    "The car ran out of petrol, so they had to": "walk to the next gas station.",
    "He put the letter into an envelope and": "posted it.",
    "She planted the seeds, watered them, and a week later": "the first green shoots came up.",
    "The dog heard a stranger at the gate and": "began to bark.",
    "After a long day at work he lay down on the bed and": "fell asleep.",
    "The ice on the lake was thin, so the children were not allowed to": "skate on it.",
    "The glass fell onto the stone floor and": "broke into pieces.",
    "He was late, so he ran to the station, but the train": "had already left.",
    "She was cold, so she put on": "a warm coat.",
    "They were thirsty after the walk, so they": "drank a lot of water.",
    "The shop was closed, so we": "came back the next day.",
    "He cut his finger with the knife, and it": "started to bleed.",
    "The teacher asked a question, and a girl in the first row": "raised her hand.",
    "The milk had been left in the sun all day, and it": "turned sour.",
    "He wanted to know what time it was, so he": "looked at his watch.",
    "The tree had been hit by lightning and": "caught fire.",
    "She did not know what the word meant, so she": "looked it up in a dictionary.",
    "His shoes were dirty, so he": "took them off at the door.",
    "The bridge had been washed away by the flood, so nobody could": "cross the river.",
    "She had a bad toothache, so she": "made an appointment with the dentist.",
    "The room was dark, so he": "switched on the lamp.",
    "The team scored in the last minute, and the fans": "cheered.",
    "It was her birthday, so her friends": "gave her presents.",
    "The fire alarm rang, and everybody": "left the building.",
    "The baker gets up early in the morning because the bread": "must be ready before breakfast.",
    "He opened the window because the air in the room": "was stale.",
    "The plane could not take off because of": "the heavy fog.",
    "She put the cake into the oven and an hour later it": "was golden brown.",
    "The cat saw a mouse and": "chased it across the kitchen.",
    "He dropped his phone into the bath, and after that it": "no longer worked.",
    "The farmer was worried, because without rain the crops": "would not grow.",
    "She lost her way in the forest, so she": "looked at the map.",
    "The joke was so good that everyone": "laughed.",
    "He had not eaten since the morning, and his stomach": "began to rumble.",
    "The paint on the bench was still wet, so nobody": "sat down on it.",
    "She listened carefully, because the old man": "spoke in a very low voice.",
    "Snow had blocked the road, so the school": "stayed closed that day.",
    "He saved some money every month, and after two years he": "bought a bicycle.",
    "The wind was strong, and it blew his hat": "off his head.",
    "When the clock struck twelve, they wished each other": "a happy new year.",
    "The boy was afraid of the dark, so his mother": "left a light on in his room.",
    "The kettle began to whistle, which meant that the water": "was boiling.",
    "He could not read the small print without": "his glasses.",
    "At the end of the play the audience stood up and": "clapped.",
}  # fmt: skip

#: What is to be gone on with, word by word: a beginning, and all that follows.
CHAINS: dict[str, str] = {
    "one, two, three,": " four, five, six, seven, eight, nine, ten",
    "ten, nine, eight,": " seven, six, five, four, three, two, one",
    "10, 20, 30,": " 40, 50, 60, 70, 80, 90, 100",
    "2, 4, 6,": " 8, 10, 12, 14, 16, 18, 20",
    "5, 10, 15,": " 20, 25, 30, 35, 40, 45, 50",
    "1, 3, 5,": " 7, 9, 11, 13, 15, 17, 19",
    "100, 200, 300,": " 400, 500, 600, 700, 800, 900",
    "1, 2, 4, 8,": " 16, 32, 64, 128, 256, 512",
    "Monday, Tuesday, Wednesday,": " Thursday, Friday, Saturday, Sunday",
    "January, February, March,": " April, May, June, July, August, September, October",
    "A, B, C, D,": " E, F, G, H, I, J, K, L, M, N, O, P",
    "first, second, third,": " fourth, fifth, sixth, seventh, eighth, ninth, tenth",
}  # fmt: skip
