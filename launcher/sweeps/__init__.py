"""Sweeps: several runs that differ in some config keys. `variants`: which; `local`: train them on this machine."""
