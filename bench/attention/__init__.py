"""Block attention measured: its speed and its error against dense attention."""
