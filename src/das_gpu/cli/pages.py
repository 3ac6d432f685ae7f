"""Examples, exit codes, files and environment of each command, for its help."""

from __future__ import annotations

from collections.abc import Mapping

from das_gpu.cli.manual import CODES, Page, codes

_OPTIONS = {
    "DAS_GPU_OPTION": "Any option by its name, as DAS_GPU_TILE_SECONDS=30 for --tile-seconds 30. "
    "The option itself wins over it, and it wins over a recipe file.",
}
_AZURE = {
    "AZURE_STORAGE_...": "ACCOUNT_NAME, and CONNECTION_STRING, ACCOUNT_KEY or SAS_TOKEN: what "
    "--credential auto takes.",
}
_STORES = {
    **_AZURE,
    "AWS_..., GOOGLE_...": "Credentials and region for s3:// and gs://.",
}
_DEMO = {"XDG_CACHE_HOME": "Where demo: is kept, in das-gpu. [default: ~/.cache]"}
_NO_COLOR = {"NO_COLOR": "No colour on a terminal, when set to anything."}
_RUN = {**_OPTIONS, **_AZURE}
_READING = {**_OPTIONS, **_STORES, **_DEMO}

MAIN = Page(
    examples={
        "das-gpu extract demo: images": "Images of a synthetic recording, made on first use.",
        "das-gpu COMMAND --help": "A command in full, with examples.",
    },
    codes=CODES,
    files={
        "stdout": "Results: tables for people; with --json one JSON object on one line, {error, "
        "message, exit_code} for an error; a recipe or a completion script.",
        "stderr": "Messages and errors, and progress when it is a terminal.",
    },
    environment={
        "DAS_GPU_OPTION": "Any option of any command but simulate, as DAS_GPU_TILE_SECONDS=30 for "
        "--tile-seconds 30. The option itself wins.",
        **_STORES,
        **_DEMO,
        **_NO_COLOR,
    },
)

PAGES: Mapping[str, Page] = {
    "extract": Page(
        examples={
            "das-gpu extract demo: images": "The demonstration, into the folder images. Once "
            "more, it does what is missing, or nothing.",
            "das-gpu extract demo: late --start 2021-11-01T23:11:30 --format png16 -q": "From a "
            "time on, in 16 bits, and not a word unless it fails.",
            "das-gpu extract recording.zarr sharp --channels 1000:2000:2 --low 15 --high 30 "
            "--tile-seconds 10 --bands 2": "500 of the channels, another band-pass, shorter tiles.",
            "das-gpu extract https://ACCOUNT.blob.core.windows.net/das/archive.zarr night "
            "--channels 10000::5 --start 2021-11-02T06:00 --stop 2021-11-02T07:00": "An hour of "
            "an archive in Azure, read without credentials.",
            "das-gpu extract az://das/archive.zarr az://images/night --account ACCOUNT "
            "--credential sas:READ_TOKEN --out-credential key:@key.txt": "From container to "
            "container; the signature is in the variable READ_TOKEN, the key in a file.",
            "das-gpu extract recording.zarr images --cluster cuda --log-json run.jsonl": "A "
            "worker for each GPU, and the log in a file of its own.",
        },
        codes=codes(3, 4, 5, 6, 11),
        files={
            "OUT/images/": "The images, by day and hour.",
            "OUT/metadata.jsonl": "The manifest: one line for each image, time, channels, levels.",
            "OUT/undelivered.jsonl": "One line for each tile without an image, and the reason.",
            "OUT/report.html": "The page of the run; open it in a browser.",
            "OUT/run.json": "What was asked for, with what software and machine.",
            "OUT/logs/": "What happened when, as JSON lines.",
        },
        environment={**_READING, "TMPDIR": "Where files for a container are collected."},
        see=("plan", "preview", "status", "report"),
    ),
    "index": Page(
        examples={
            "das-gpu index day1/*.h5 -o day1.json": "The files of a day, as one archive.",
            "das-gpu index https://ACCOUNT.blob.core.windows.net/das/day1/ -o day1.json": "The "
            "same, where they are in Azure.",
            "das-gpu extract day1.json images": "Images from all of them.",
        },
        codes=codes(4, 5, 6),
        environment=_RUN,
        see=("info", "extract"),
    ),
    "info": Page(
        examples={
            "das-gpu info demo:": "Shape, rate, spacing, times, chunks.",
            "das-gpu info recording.zarr --json": "The same for a script.",
        },
        codes=codes(4, 5),
        environment=_READING,
        see=("plan",),
    ),
    "plan": Page(
        examples={
            "das-gpu plan demo:": "What extract would read and make with its defaults.",
            "das-gpu plan recording.zarr --channels 1000::5 --tile-seconds 30 --json": "With "
            "options of extract, for a script.",
        },
        codes=codes(4, 5),
        environment=_READING,
        see=("extract",),
    ),
    "preview": Page(
        examples={
            "das-gpu preview demo: --bands 1 --at 2021-11-01T23:11:20 -o steps.png": "The tile "
            "at a time, with all channels in one band.",
            "das-gpu preview recording.zarr --band 0 --low 10 --high 20": "The first of the "
            "tiles side by side, with another band-pass.",
        },
        codes=codes(4, 5, 6) | {3: "The tile is missing, corrupt or in error; this is drawn."},
        environment=_READING,
        see=("extract", "recipe"),
    ),
    "recipe": Page(
        examples={
            "das-gpu recipe": "The default recipe, continuous.",
            "das-gpu recipe --preset notebook --low 10 > my-recipe.toml": "Another one, changed, "
            "into a file for --config.",
            "das-gpu recipe --config my-recipe.toml -q": "Whether a recipe can work.",
        },
        codes=codes(),
        environment=_OPTIONS,
        see=("preview", "extract"),
    ),
    "status": Page(
        examples={
            "das-gpu status images": "What is done, running, failed; rate and time left.",
            "das-gpu status images --failed": "Every reason for which tiles were lost.",
            "das-gpu status images -q": "Only the exit code: whether it is finished.",
        },
        codes=codes(3, 5, 6, 10) | {0: "Finished, and all is delivered."},
        environment=_RUN,
        see=("verify", "report"),
    ),
    "verify": Page(
        examples={
            "das-gpu verify images": "Every image against its sha256.",
            "das-gpu verify images --repair": "Besides, what is damaged is put back to do.",
        },
        codes=codes(3, 5, 6, 10, 12)
        | {
            0: "All is right and delivered.",
            3: "All is right, and tiles are missing, corrupt or in error.",
            10: "Segments are to do, after a repair too: give the extract command again.",
            12: "Something is damaged: --repair mends it.",
        },
        environment=_RUN,
        see=("status", "extract"),
    ),
    "report": Page(
        examples={"das-gpu report images": "The page anew, with all its thumbnails."},
        codes=codes(5, 6) | {0: "The page is written, whatever the run has come to."},
        files={
            "OUT/report.html": "The page; it needs no network and no other file, but for",
            "OUT/report/sprites/": "thumbnails of more than some thousand images.",
        },
        environment=_RUN,
        see=("status",),
    ),
    "export": Page(
        examples={
            "das-gpu export images shards --webdataset --shard-size 500MB": "Tar files of at "
            "most 500 MB, no two hours in one.",
            "das-gpu export images lists --coco --label-studio --label 'fin whale' --label ship": (
                "Lists of images, to be annotated with two labels."
            ),
        },
        codes=codes(5, 6),
        files={
            "DEST/*.tar": "--webdataset: images and their records, by UTC hour.",
            "DEST/coco.json": "--coco: images and categories, no annotations yet.",
            "DEST/label-studio.json": "--label-studio: tasks to import; .xml: the labels.",
        },
        environment=_RUN,
        see=("extract", "verify"),
    ),
    "bench": Page(
        examples={
            "das-gpu bench demo: --channels ::20 --minutes 0.5 --repeats 1 --out first.json": (
                "A quick look, and the result in a file."
            ),
            "das-gpu bench recording.zarr --channels ::5 --minutes 2 --json": "Your archive, for "
            "a script.",
            "das-gpu bench --compare first.json second.json": "Two results side by side.",
        },
        codes=codes(4, 5, 6) | {3: "The backends do not make the same images."},
        environment=_READING,
        see=("doctor",),
    ),
    "simulate": Page(
        examples={
            "das-gpu simulate recording.zarr --channels 2000 --minutes 1 --seed 7": "2000 "
            "channels, a minute.",
            "das-gpu simulate flawed.zarr --channels 600 --gap 5 --dead 3": (
                "One that has everything that goes wrong."
            ),
        },
        codes=codes(6),
        see=("extract",),
    ),
    "doctor": Page(
        examples={
            "das-gpu doctor": "What is there, what is missing, and what to do about it.",
            "das-gpu doctor -q && das-gpu extract demo: images --backend gpu": "A GPU, or nothing.",
        },
        codes={0: "--backend gpu runs here.", 1: "It does not.", 2: CODES[2], 130: "Interrupted."},
        see=("bench",),
    ),
    "completion": Page(
        examples={
            "das-gpu completion bash > ~/.local/share/bash-completion/completions/das-gpu": (
                "For bash, where the package bash-completion is installed; otherwise:"
            ),
            "echo 'source <(das-gpu completion bash)' >> ~/.bashrc": "For bash.",
            "echo 'source <(das-gpu completion zsh)' >> ~/.zshrc": "For zsh, behind compinit.",
            "das-gpu completion fish > ~/.config/fish/completions/das-gpu.fish": "For fish.",
        },
        codes={0: "The script is written.", 2: CODES[2]},
    ),
}
"""By command."""
