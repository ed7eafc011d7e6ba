"""The gateway: an OpenAI-compatible proxy in front of vLLM servers; its router is a policy over the view."""
