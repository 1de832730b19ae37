# A study's runs as jobs, by a plan that `handclip study NAME` writes: what is to be done, in which
# order, and with what. Profiles in profiles/ say where they run.
#
# A job's output is a small file in the working folder of the call, not the run's metrics.json:
# Snakemake removes outputs before a job starts, and a run that fails must not cost an earlier
# result. Logs of failed jobs stay: the text beside that file, and the executed report.ipynb in the
# run's folder.
import json
import sys
from pathlib import Path

FILE = Path("plan.json").absolute()  # in the working folder of the call
if not FILE.is_file():
    raise WorkflowError(
        "call `handclip study NAME`, which plans and then calls Snakemake;"
        " `handclip study NAME --executor FOLDER` takes a profile of your own"
    )
PLAN = json.loads(FILE.read_text(encoding="utf-8"))
RUNS = PLAN["runs"]
NODE = Path(workflow.basedir, "handclip_lib", "report", "node.py")


rule all:
    input:
        [f"runs/{key}.json" for key in RUNS],
    localrule: True


rule run:
    input:
        lambda wildcards: [f"runs/{key}.json" for key in RUNS[wildcards.key]["before"]],
    output:
        "runs/{key}.json",
    log:
        "runs/{key}.log",
    threads: PLAN["threads"]
    resources:
        gpu=lambda wildcards: RUNS[wildcards.key]["gpu"],
    params:
        python=lambda wildcards: sys.executable,  # plain text would be read for wildcards
        node=lambda wildcards: NODE,
        plan=lambda wildcards: FILE,
    shell:
        "exec {params.python:q} -P {params.node:q} {params.plan:q} {wildcards.key:q} {threads}"
        " </dev/null >{log:q} 2>&1"
