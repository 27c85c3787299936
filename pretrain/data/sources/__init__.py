"""The three places documents come from: this Python's library, the user's files, a Hugging Face data set."""
