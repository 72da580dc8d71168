"""Entries of the catalog to messages."""

from enginehouse.v1 import model_service_pb2 as model_pb
from enginehouse.v1 import types_pb2 as types_pb
from enginehouse_builder.manifest import BuiltEngine, Manifest
from enginehouse_server.repository import Entry, LoadedClassifier, LoadedDecoder
from enginehouse_server.tasks import Activation, Classifier, Generator

__all__ = ["model_message"]

_ACTIVATIONS: "dict[Activation, types_pb.Activation.ValueType]" = {
    "softmax": types_pb.ACTIVATION_SOFTMAX,
    "sigmoid": types_pb.ACTIVATION_SIGMOID,
    "none": types_pb.ACTIVATION_NONE,
}
_STATES = {
    "loading": types_pb.MODEL_STATE_LOADING,
    "ready": types_pb.MODEL_STATE_READY,
    "unloadable": types_pb.MODEL_STATE_UNLOADABLE,
    "draining": types_pb.MODEL_STATE_DRAINING,
}


def model_message(entry: Entry) -> model_pb.Model:
    """The message for an entry of the catalog."""
    message = model_pb.Model(
        name=entry.model, version=entry.version, state=_STATES[entry.state], reason=entry.reason
    )
    match entry.loaded, entry.runner:
        case LoadedClassifier() as loaded, Classifier() as classifier:
            _describe_classifier(message, loaded, classifier)
            _describe_source(message, loaded.manifest)
        case LoadedDecoder() as decoder, Generator() as generator:
            _describe_decoder(message, decoder, generator)
            _describe_source(message, decoder.manifest)
    return message


def _describe_source(message: model_pb.Model, manifest: Manifest) -> None:
    message.task = manifest.task
    message.source, message.source_sha256 = manifest.source.id, manifest.source.sha256


def _describe_classifier(
    message: model_pb.Model, loaded: LoadedClassifier, classifier: Classifier
) -> None:
    traits, chosen, shapes = classifier.traits, loaded.chosen, loaded.grid.shapes
    message.labels.extend(traits.labels)
    message.activation = _ACTIVATIONS[traits.activation]
    message.accepts_pairs = traits.accepts_pairs
    message.limits.CopyFrom(
        types_pb.ModelLimits(
            max_tokens=traits.max_tokens,
            max_batch=max(s.batch for s in shapes),
            max_batch_tokens=max(s.num_tokens for s in shapes),
            max_inputs=traits.max_inputs,
        )
    )
    engine = loaded.engine
    _describe_engine(message.engine, chosen, engine.runtime_version, engine.device)
    message.engine.precision = chosen.precision
    message.engine.passed_over.extend(loaded.passed_over)
    found = chosen.certificate
    message.engine.certificate.CopyFrom(
        types_pb.Certificate(
            reference=found.reference,
            num_samples=found.num_samples,
            max_abs_error=found.max_abs_error,
            mean_abs_error=found.mean_abs_error,
            min_cosine=found.min_cosine,
            top1_agreement=found.top1_agreement,
            tolerance=found.tolerance,
        )
    )


def _describe_decoder(message: model_pb.Model, loaded: LoadedDecoder, generator: Generator) -> None:
    traits, chosen, engine = generator.traits, loaded.chosen, loaded.engine
    message.accepts_chat = traits.accepts_chat
    message.limits.CopyFrom(
        types_pb.ModelLimits(
            max_tokens=traits.max_tokens,
            max_batch=traits.max_running,
            max_batch_tokens=traits.max_step_tokens,
            max_inputs=traits.max_sequences,
            cache_tokens=traits.cache_tokens,
        )
    )
    _describe_engine(message.engine, chosen, engine.runtime_version, engine.device)
    message.engine.precision = chosen.precision
    message.engine.cache_precision = chosen.cache_precision
    message.engine.passed_over.extend(loaded.passed_over)
    found = chosen.certificate
    message.engine.certificate.CopyFrom(
        types_pb.Certificate(
            reference=found.reference,
            num_samples=found.num_prompts,
            max_abs_error=found.max_abs_error,
            top1_agreement=found.top1_agreement,
            tolerance=found.tolerance,
            token_agreement=found.token_agreement,
            mean_kl=found.mean_kl,
            perplexity=found.perplexity,
            reference_perplexity=found.reference_perplexity,
        )
    )


def _describe_engine(
    message: types_pb.Engine, chosen: BuiltEngine, runtime_version: str, device: str
) -> None:
    message.backend, message.target = chosen.backend, chosen.target
    message.runtime_version, message.device = runtime_version, device
