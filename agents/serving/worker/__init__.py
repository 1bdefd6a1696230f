"""What runs inside vLLM, in whose environment nothing else of ours is installed.

longvideo_vllm.py  takes weights from files that a trainer has written
"""
