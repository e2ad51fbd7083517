"""The training engine.

From the outside in: `__main__` reads the command, `recipes`, `config` and `overrides` make the
settings, `run` starts a `session`, and a loop (`loop_lightning`, `loop_plain`) steps the `engine`.
The engine knows nothing of networks: `diffusion` and `tokenizer` implement its `task`. `layout`,
`gradients`, `weights` and `checkpoint` hold what parallelism asks for; `dataset`, `cache`, `order`,
`loader`, `clips` and `draws` are the way of a sample.
"""

#: EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again.
EXIT_RESUME = 75
