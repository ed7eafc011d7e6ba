"""Rewards and Gymnasium environments over the simulator."""


def register_envs() -> None:
    """Make `fairlead/Router-v0` known to Gymnasium (its plug-in entry point calls this)."""
    import gymnasium

    if "fairlead/Router-v0" not in gymnasium.registry:
        gymnasium.register(
            id="fairlead/Router-v0",
            entry_point="fairlead.env.single:RouterEnv",
            vector_entry_point="fairlead.env.vector:RouterVectorEnv",
        )
