"""State machines of hypothesis: whatever is done in whatever order, the promises hold."""
