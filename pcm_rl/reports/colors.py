"""The colours of every figure, film and animation."""

from __future__ import annotations

from pcm_rl.phases import Phase

#: One colour per phase, wherever phases are drawn. The warm ones are the phases around the grasp. All five can be
#: distinguished with the common colour deficiencies, on white and on black.
PHASE_COLORS: dict[Phase, str] = {
    Phase.ACTIVE_GRIP: "#d9480f",
    Phase.PRE_GRASP: "#f0a20c",
    Phase.RELEASE_RAMP: "#9c5fc4",
    Phase.APPROACH: "#2f7fd1",
    Phase.TAIL: "#94a3b8",
}
NO_PHASE_COLOR = "#e2e8f0"
CURSOR_COLOR = "#0b1220"
TEXT_COLOR, FAINT_TEXT_COLOR, PAPER_COLOR = "#16202c", "#64748b", "#ffffff"


def phase_color(phase: int) -> str:
    """Colour of a phase's number, -1 for none."""
    return PHASE_COLORS[Phase(phase)] if phase >= 0 else NO_PHASE_COLOR
