"""What a site answers; the same app in every runtime."""

from __future__ import annotations

import functools

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from nnunetv2_federated.federation.messages import TrainTask
from nnunetv2_federated.federation.settings import read_run
from nnunetv2_federated.flower.records import (
    reply,
    run_folder,
    unpack_payload,
    unpack_weights,
)
from nnunetv2_federated.training.site import Site, SitePool

read_run_once = functools.lru_cache(maxsize=8)(read_run)


def make_client_app(pool: SitePool) -> ClientApp:
    """Build the app around a pool of living trainers."""
    app = ClientApp()

    def site_of(context: Context) -> Site:
        folder = run_folder(context)
        return pool.get(read_run_once(folder), int(context.node_config["partition-id"]), folder)

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        return reply(message, site_of(context).describe().to_json())

    @app.train()
    def train(message: Message, context: Context) -> Message:
        task = TrainTask.from_json(unpack_payload(message.content))
        trained, report = site_of(context).train(task, unpack_weights(message.content))
        return reply(message, report.to_json(), trained, report.training_cases)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        task = TrainTask.from_json(unpack_payload(message.content))
        weights = unpack_weights(message.content)
        validation = site_of(context).evaluate(task.validate_received, weights)
        return reply(message, validation.to_json())

    return app


app = make_client_app(SitePool())
"""The app as Flower's own runtimes load it; its trainers live as long as the process."""
