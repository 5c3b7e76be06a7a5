"""Models for others: one weights file, a card that says what it is, and a folder that diffusers loads."""
