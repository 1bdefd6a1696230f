"""Long-video question answering as a Gymnasium environment."""
