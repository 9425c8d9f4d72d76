"""What a site answers; the same app in every runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from nnunetv2_federated.federation.errors import SettingsError
from nnunetv2_federated.federation.messages import FingerprintTask, PrepareTask, TrainTask
from nnunetv2_federated.federation.run import read_run
from nnunetv2_federated.flower.records import (
    pack_reply,
    reply,
    run_folder,
    unpack_payload,
    unpack_weights,
)
from nnunetv2_federated.nnunet.evaluation.scoring import score_here
from nnunetv2_federated.nnunet.planning.raw_site import RawSite
from nnunetv2_federated.nnunet.training.site_pool import SitePool, WorkingSite

_POOL = SitePool()
_READER = "site"


def find_site(pool: SitePool, context: Context) -> WorkingSite:
    """Return the site that a context is about, with its trainer in memory."""
    folder = run_folder(context)
    return pool.get(read_run(folder), int(context.node_config["partition-id"]), folder)


def _find_in_this_process(context: Context) -> WorkingSite:
    """Use the pool of whichever process this runs in; Ray ships the app, never the trainers."""
    return find_site(_POOL, context)


def find_raw_site(context: Context) -> RawSite:
    """Open the raw dataset that the node's configuration names."""
    dataset = context.node_config.get("dataset")
    if not dataset:
        raise SettingsError(
            "the node has no dataset: start it with --node-config 'dataset=\"501\"'."
        )
    return RawSite.open(str(dataset))


def make_client_app(
    find: Callable[[Context], WorkingSite] = _find_in_this_process,
    find_raw: Callable[[Context], RawSite] = find_raw_site,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Build the app.

    Parameters
    ----------
    find
        Returns the site that a context is about, with its trainer.
    find_raw
        Returns the raw dataset of the site, for joint planning.
    mods
        Flower's mods: functions around the app that see each message first.
    """
    app = ClientApp(mods=list(mods))

    @app.query("survey")
    def survey(message: Message, context: Context) -> Message:
        return reply(message, find_raw(context).survey().to_json())

    @app.query("fingerprint")
    def fingerprint(message: Message, context: Context) -> Message:
        task = FingerprintTask.from_json(unpack_payload(message.content, _READER))
        return reply(message, find_raw(context).fingerprint(task).to_json())

    @app.query("prepare")
    def prepare(message: Message, context: Context) -> Message:
        task = PrepareTask.from_json(unpack_payload(message.content, _READER))
        return reply(message, find_raw(context).prepare(task).to_json())

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return reply(message, find(context).describe().to_json())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = TrainTask.from_json(unpack_payload(message.content, _READER))
        site = find(context)
        dtype = site.run.settings.transport_dtype
        received = unpack_weights(message.content, dtype)
        trained, report = site.train(task, received)
        packed = pack_reply(trained, received, dtype)
        return reply(message, report.to_json(), packed)

    @app.train("personal")
    def train_personal(message: Message, context: Context) -> Message:
        site = find(context)
        return reply(message, site.personalise(unpack_weights(message.content)).to_json())

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        task = TrainTask.from_json(unpack_payload(message.content, _READER))
        site = find(context)
        weights = unpack_weights(message.content, site.run.settings.transport_dtype)
        validation = site.evaluate(task.validate_received, weights)
        return reply(message, validation.to_json())

    @app.evaluate("fully")
    def evaluate_fully(message: Message, context: Context) -> Message:
        site = find(context)
        return reply(message, site.validate_fully(unpack_weights(message.content)).to_json())

    @app.evaluate("score")
    def evaluate_score(message: Message, context: Context) -> Message:
        task = TrainTask.from_json(unpack_payload(message.content, _READER))
        site = find(context)
        weights = unpack_weights(message.content)
        return reply(message, score_here(site, weights, task.validate_received).to_json())

    return app


app = make_client_app()
"""The app as Flower's own runtimes load it; its trainers live as long as the process."""
