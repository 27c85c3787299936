"""Growth while a run trains (`grow`), or of a finished run (`offline`), and both in words (`describe`).

What grows into what, and when, the configuration says: `pretrain.config.stages`. `model.growth` has the operators.
"""
