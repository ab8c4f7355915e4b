"""What OpenAPI shows of POST /v1/jobs: its body with examples, its headers. Data only."""

from __future__ import annotations

from typing import Any, Final

JOB_SPEC_BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/JobSpec"},
            "examples": {
                "one": {
                    "summary": "One prompt, everything else by default",
                    "value": {"model": "scenes", "prompts": ["a red circle above a blue square"]},
                },
                "batch": {
                    "summary": "Two prompts, four images each, seeds 7, 8, 9, 10",
                    "value": {
                        "model": "scenes",
                        "prompts": ["a red heart left of a green house at night", "a yellow star"],
                        "num_images_per_prompt": 4,
                        "seed": 7,
                        "num_inference_steps": 20,
                        "guidance_scale": 5.0,
                        "scheduler": "dpmpp_2m",
                        "output": {"format": "png"},
                        "priority": "normal",
                        "reproducibility": "fast",
                        "labels": {"shoot": "spring"},
                    },
                },
                "own-parameters": {
                    "summary": "A prompt with parameters of its own beside one without",
                    "value": {
                        "model": "scenes",
                        "prompts": [
                            "a blue boat",
                            {
                                "prompt": "a purple tree",
                                "seed": 42,
                                "num_inference_steps": 30,
                                "scheduler": "euler_ancestral",
                                "width": 192,
                                "height": 128,
                            },
                        ],
                        "negative_prompt": "night",
                        "reproducibility": "invariant",
                        "output": {"format": "webp", "quality": 85},
                    },
                },
                "template": {
                    "summary": "A template: six prompts of one, each once",
                    "value": {
                        "model": "scenes",
                        "prompts": ["a {red|blue|yellow} {star|boat} __scenes/background__"],
                        "template": {"mode": "random", "num_prompts": 6, "seed": 1},
                        "seed": 7,
                    },
                },
                "matrix": {
                    "summary": "Two fields in all combinations, and one labelled picture of all images",
                    "value": {
                        "model": "scenes",
                        "prompts": ["a red heart left of a green house at night"],
                        "matrix": {"guidance_scale": [1, 3, 5, 8], "num_inference_steps": [4, 8, 20]},
                        "grid": True,
                        "seed": 7,
                    },
                },
                "sooner": {
                    "summary": "Guidance for 60% of the run, the whole UNet at every second call; one picture exact",
                    "value": {
                        "model": "scenes",
                        "prompts": ["a yellow star above a blue boat", {"prompt": "a pink tree", "acceleration": {}}],
                        "acceleration": {"guidance_end": 0.6, "deep_cache_interval": 2},
                    },
                },
            },
        },
        "application/jsonl": {
            "schema": {"type": "string", "description": "JSON Lines; also as application/x-ndjson."},
            "examples": {
                "lines": {
                    "summary": "The job's settings in the first line, a prompt in each other",
                    "value": '{"model": "scenes", "seed": 7}\n"a blue boat"\n{"prompt": "a pink tree", "seed": 42}\n',
                }
            },
        },
        "text/csv": {
            "schema": {
                "type": "string",
                "description": "A header row, then a prompt a row; what holds for the job comes in the query.",
            },
            "examples": {
                "table": {
                    "summary": "With ?model=scenes",
                    "value": 'prompt,seed,steps\n"a red circle, at night",7,20\na yellow star,,\n',
                }
            },
        },
        "application/yaml": {
            "schema": {"$ref": "#/components/schemas/JobSpec"},
            "examples": {
                "yaml": {
                    "summary": "As JSON, in YAML; no tags, anchors or aliases",
                    "value": {"model": "scenes", "prompts": ["a red circle"]},
                }
            },
        },
        "text/plain": {
            "schema": {"type": "string", "description": "A prompt a line; what holds for the job comes in the query."},
            "examples": {"text": {"summary": "With ?model=scenes", "value": "a red circle\na blue boat\n"}},
        },
    },
}

ACCEPTED_HEADERS: Final[dict[str, Any]] = {
    "Location": {"description": "Path of the job.", "schema": {"type": "string"}, "required": True},
    "Idempotent-Replayed": {
        "description": "`true` when the Idempotency-Key had been used: this is the job made then, as it stands now.",
        "schema": {"type": "string", "enum": ["true"]},
    },
}
