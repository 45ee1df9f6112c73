"""Gymnasium side: the chunk wrapper, the toy tasks, LIBERO, MetaWorld. Importing it registers the ``pcm_rl/`` ids."""

import gymnasium

from pcm_rl.envs.bounds import ActionBounds
from pcm_rl.envs.chunked import ChunkedEnv
from pcm_rl.envs.cluster import RayCluster
from pcm_rl.envs.openvla_images import OpenVLAImages, openvla_image
from pcm_rl.envs.parts import ObservationParts
from pcm_rl.envs.pi0_images import Pi0Images, pi0_image
from pcm_rl.envs.seeded import SeededStates
from pcm_rl.envs.tasks import MultiTaskEnv
from pcm_rl.envs.vector import VectorMember, chunked_vector_env
from pcm_rl.envs.workers import WorkerVectorEnv

_TOY = {"pcm_rl/PickPlace-v0": ("PickPlaceEnv", "pick_place"), "pcm_rl/Reach-v0": ("ReachEnv", "reach")}

for _id, (_single, _task) in _TOY.items():
    if _id not in gymnasium.registry:
        gymnasium.register(
            id=_id,
            entry_point=f"pcm_rl.envs.tabletop.env:{_single}",
            vector_entry_point=f"pcm_rl.envs.tabletop.env:make_{_task}_vector",
        )
if "pcm_rl/Libero-v0" not in gymnasium.registry:
    gymnasium.register(id="pcm_rl/Libero-v0", entry_point="pcm_rl.envs.libero.env:LiberoEnv")
if "pcm_rl/MetaWorld-v0" not in gymnasium.registry:
    gymnasium.register(id="pcm_rl/MetaWorld-v0", entry_point="pcm_rl.envs.metaworld.env:MetaWorldEnv")

__all__ = [
    "ActionBounds",
    "ChunkedEnv",
    "MultiTaskEnv",
    "ObservationParts",
    "OpenVLAImages",
    "Pi0Images",
    "RayCluster",
    "SeededStates",
    "VectorMember",
    "WorkerVectorEnv",
    "chunked_vector_env",
    "openvla_image",
    "pi0_image",
]
