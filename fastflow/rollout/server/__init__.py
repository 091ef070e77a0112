"""Rollouts by running vLLM servers over HTTP; plugin.py and transfer_engine.py are what vLLM loads on their side."""
