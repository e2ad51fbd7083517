"""The training engine.

From the outside in: `__main__` reads the command, `settings` says what may be set, `run` starts a
`session`, and a loop (`loop_lightning`, `loop_plain`) steps the `engine`. The engine knows nothing
of networks: `tasks` are what it trains. `data` is the way of a sample, `parallel` and `memory` are
where the state lies, `checkpoint` keeps it.
"""
