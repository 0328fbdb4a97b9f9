"""`loopcoder serve`: a model behind OpenAI's API."""

from __future__ import annotations

from loopcoder.backends import detect, refuse_missing, require
from loopcoder.cli.arguments import fields_of, parse_arguments, say, say_aside, section_of
from loopcoder.cli.asked_weights import AskedWeights, place_in
from loopcoder.cli.renamed_fields import renamed
from loopcoder.cli.run_names import name_of
from loopcoder.config.serving import MAX_LENGTH, ServeConfig
from loopcoder.errors import EXIT_DONE, InputError
from loopcoder.storage.signals import ended_at_once, interrupted_by_signals

HELP = """\
Serve a trained model by OpenAI's API: completions (token ids, echo, logprobs) and chat, whole or as
a stream, with as many sequences in a batch as there are. For one machine and few users.

usage: loopcoder serve checkpoint=DIR|URL|FOLDER [serve.KEY=VALUE ...] [key=value ...]

  loopcoder serve checkpoint=runs/plt_tiny-r2-cc8f20c8a9          the newest checkpoint of a run
  loopcoder serve checkpoint=FOLDER                               weights for transformers
  loopcoder serve checkpoint=DIR serve.port=8001 serve.places=32 serve.max_length=4096
  LOOPCODER_API_KEY=... loopcoder serve checkpoint=DIR serve.host=0.0.0.0
  loopcoder serve checkpoint=DIR model.num_loops=3                with another number of loops

  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
       -d '{{"prompt": "def main():", "max_tokens": 64, "temperature": 0}}'

{fields}

Also GET /v1/models, /health and /metrics (Prometheus). SIGTERM or Ctrl-C lets what runs end; a
second one does not wait. Fields that may be given besides: model.num_loops, precision,
data.build.cache_dir. docs/serving.md has more.

exit codes: 0 stopped by a signal, 3 bad input, 1 the model failed"""

_FIELDS = {
    "num_places=": "serve.places=",
    "max_length=": "serve.max_length=",
    "kernels=": "serve.kernels=",
}
"""Arguments of a decoder, and what they are called here."""


def run(argv: list[str]) -> int:
    """Serve until a signal asks to stop."""
    arguments = parse_arguments(argv, takes=[])
    if arguments.help:
        print(HELP.format(fields=fields_of("serve", ServeConfig)))
        return EXIT_DONE
    interrupted_by_signals("before the server was ready")
    place, others = place_in(arguments.overrides, "serve")
    config, others = section_of(others, "serve", ServeConfig)
    asked = AskedWeights.of(others, arguments.config_dir)
    if asked.parallel.tp > 1:
        raise InputError.of(
            f"parallel.tp={asked.parallel.tp}",
            "the server runs on one GPU",
            f"loopcoder export checkpoint={place} output=FOLDER, and vLLM",
        )
    refuse_missing()
    for package in ("jsonschema", "starlette", "uvicorn"):
        fact = "loopcoder serve"
        require(package, fact, f"{package} is not installed", "pip install '.[serve]'")
    with ended_at_once():
        from loopcoder.infer.engine import Engine
        from loopcoder.infer.loading import load_decoder
        from loopcoder.infer.prompts import Prompts
        from loopcoder.infer.serve.run import key_from_environment, listen, most_open, serve
        from loopcoder.infer.sources import Asked, source_at
    key = key_from_environment()
    with listen(config, key) as taken:
        weights = Asked(detect(), asked.num_loops, asked.precision, asked.parallel)
        source = source_at(place, asked.cache, weights)
        prompts = Prompts.of_source(source, config.tool_format)
        length = config.max_length or min(MAX_LENGTH, source.model.max_position_embeddings)
        with renamed(_FIELDS):
            decoder = load_decoder(
                source,
                num_places=config.places,
                max_length=length,
                cuda_graphs=config.cuda_graphs,
                kernels=config.kernels,
            ).decoder
        engine = Engine(decoder, prompts.tokenizer, prompts.end_ids, max_waiting=most_open(config))
        name = config.name or name_of(source.place)
        say_aside(f"{name}: {config.places} places of {length:,} tokens")
        serve(engine, name, prompts, config, key, taken, say)
    return EXIT_DONE
