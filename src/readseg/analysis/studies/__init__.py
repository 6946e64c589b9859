"""The paper's questions, one study a file."""
