"""The prompt optimizers of rayprompt, one file per algorithm. They import rayprompt, never the reverse."""
