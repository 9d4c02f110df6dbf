"""The question: finding it in a prompt, and embedding it in CLIP's joint space."""
