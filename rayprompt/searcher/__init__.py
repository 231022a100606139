"""What a searcher is built from (Problem), what it must be (PromptSearcher), and how one is found by name."""
