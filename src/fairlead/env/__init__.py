"""Rewards and Gymnasium environments over the simulator.

Importing this package makes `fairlead/Router-v0` known to Gymnasium:

    import fairlead.env
    env = gymnasium.make("fairlead/Router-v0", scenario="chat-unequal")
    envs = gymnasium.make_vec("fairlead/Router-v0", scenario="chat-unequal", num_envs=64)
"""

import gymnasium

if "fairlead/Router-v0" not in gymnasium.registry:
    gymnasium.register(
        id="fairlead/Router-v0",
        entry_point="fairlead.env.single:RouterEnv",
        vector_entry_point="fairlead.env.vector:RouterVectorEnv",
    )
