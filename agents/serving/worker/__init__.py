"""What runs beside or inside vLLM; nothing else of ours is installed there."""
