"""Commands in force that hold back the tasks of a route: for `explain` and `watch`."""

from __future__ import annotations

from cdc_tasks.errors import CDCError
from cdc_tasks.routing.router import BinlogRouter
from listener.daemon.settings import ListenerSettings
from listener.daemon.wiring import control_state

__all__ = ["held_routes"]


def held_routes(settings: ListenerSettings, router: BinlogRouter) -> tuple[dict[str, str], list[str]]:
    """Return why tasks of a route are held back, by route id; and notes on all routes, or why nothing is known."""
    state = control_state(settings)
    try:
        state.read()
    except CDCError as error:
        return {}, [f"Which routes are paused is unknown: {error.message}"]
    held = dict.fromkeys(state.paused_routes, "paused: its messages are set aside")
    for route, until in state.skips.items():
        held[route] = f"skipped, if committed before {until:%Y-%m-%d %H:%M:%S} UTC"
    known = {route.id for route in router.routes}
    notes = ["Everything is paused: the listener reads nothing."] if state.is_paused else []
    return {route: why for route, why in held.items() if route in known}, notes
