"""Training steps on the devices that there are, for tests: prints what was logged, as JSON.

    PYTHONPATH=. python tests/devices.py '{"method": "byol", "threat": "l2", "steps": 4}'

The argument may hold a list ``settings`` of changes to the configuration, one run for each, and be
followed by HOST:PORT COUNT INDEX, of several processes.
"""

import json
import re
import sys

import jax
import tiny

from adv_ssl import sharding, stage
from adv_ssl.config import parse
from adv_ssl.data import sources


def trained(method: str, threat: str, steps: int, **changes) -> dict:
    """One run: what was logged, the share of the state on the first device, the collectives."""
    config = parse(tiny.config(threat, method, evaluate__split="test[:48]", **changes).to_dict())
    options, key, mesh = config.pretrain, jax.random.key(0), sharding.mesh()
    recipe = stage.make_recipe(options, stage.make_task(config, options, 10), steps)
    state = stage.random_state(options, recipe, key)
    step, shardings = stage.make_step(recipe, jax.eval_shape(lambda: state), config.fsdp, mesh)
    state, logged, text = sharding.place(state, shardings), [], ""
    names = ["loss", "grad_norm"] + ["attack/gain"] * (threat != "nominal")
    source = sources.load("digits", "train", "")
    for batch in stage.batches("pretrain", config, options, source, 0, steps):
        batch = sharding.assembled(batch)
        text = text or step.lower(state, batch, key).compile().as_text()
        state, metrics = step(state, batch, key)
        logged.append([float(metrics[name]) for name in names])
    leaves = jax.tree.leaves(state.params)
    held = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    return {
        "logged": logged,
        "share": held / sum(leaf.size for leaf in leaves),
        "collectives": sorted(set(re.findall(r"all-gather|all-reduce|reduce-scatter", text))),
    }


def main() -> None:
    """Runs what the command line says."""
    what, *host = sys.argv[1:]
    if host:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(host[0], int(host[1]), int(host[2]))
    options = json.loads(what)
    settings = options.pop("settings", [{}])
    print(json.dumps([trained(**options, **changes) for changes in settings]))


if __name__ == "__main__":
    main()
