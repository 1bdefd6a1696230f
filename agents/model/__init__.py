"""The model: dialogues as token ids in, replies, log-probabilities and values out.

In reading order:

    chat.py      ChatCodec: dialogues as token ids, exactly
    markup.py    Markup: what a chat template puts around texts, and makes of them
    template.py  the chat template of the tiny model
    rows.py      dialogues laid out for a forward pass, with M-RoPE positions
    vision.py    FrameEncoder: images to features, each frame once
    sampling.py  Sampling and Reply: how replies are drawn, and what one is
    root.py      Root: modules under which anything may run
    weights.py   weights in safetensors files, read a part at a time
    packing.py   rows end to end without padding, each kept to itself
    families/    what one kind of model needs that another does not
    policy.py    MLLMPolicy: a model that scores and is trained
    fidelity.py  is a model run here as it runs itself? asked when it is loaded
    memory.py    Memory: what layers keep of a batch of dialogues
    decoding.py  DecodeSession: batched replies over several turns, one KV cache
    critic.py    Critic and its ValueHead: what a token can still earn
    tiny.py      the tiny MLLM: architecture, tokenizer, fresh weights
"""
