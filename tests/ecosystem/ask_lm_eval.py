"""Run in a process of its own: the responses of each document of the task argv[2], of the folder argv[1]."""

import json
import sys

import lm_eval
import lm_eval.tasks

folder, task, tasks, options = sys.argv[1:]
arguments = {"pretrained": folder, "dtype": "float32", **json.loads(options)}
manager = lm_eval.tasks.TaskManager(include_path=tasks, include_defaults=False)
found = lm_eval.simple_evaluate(
    "hf", model_args=arguments, tasks=[task], task_manager=manager, log_samples=True, bootstrap_iters=0, device="cpu"
)
samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
print("ANSWER" + json.dumps({"resps": [sample["resps"] for sample in samples], "results": found["results"][task]}))
