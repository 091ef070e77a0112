"""Sample on running vLLM servers over HTTP; vLLM itself loads plugin.py and transfer_engine.py on its side."""
