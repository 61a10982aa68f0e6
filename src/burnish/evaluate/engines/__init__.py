"""Speed in the engine that will serve a checkpoint: started, asked in turns, stopped; see `docs/methods/speed.md`."""
