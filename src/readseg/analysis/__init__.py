"""The paper's inquiry into the [SEG] token as numbers; `draw` makes the pictures."""
