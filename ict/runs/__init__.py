"""What makes an inference run continuable, and what it reports."""
