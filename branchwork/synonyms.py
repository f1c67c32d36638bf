"""What other tools call our flags and keywords, so that a message can name ours."""

import difflib
from collections.abc import Iterable

# By our name. A word may stand for several: the first that the verb has is meant.
_ALSO: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "rate", "alpha"),
    "batch_size": ("bs", "batch", "batches", "batchsize", "batch_sizes"),
    "batch_sizes": ("bs", "batch", "batches", "batchsize", "batch_size"),
    "epochs": ("epoch", "num_epochs", "max_epochs", "n_epochs", "iterations"),
    "optimizer": ("opt", "optim", "optimiser"),
    "weight_decay": ("wd", "decay", "l2"),
    "schedule": ("scheduler", "sched", "lr_schedule", "lr_scheduler"),
    "label_smoothing": ("smoothing",),
    "clip": ("grad_clip", "clip_grad", "max_norm"),
    "validation": ("val", "valid", "val_split", "validation_split"),
    "patience": ("early_stopping", "early_stop"),
    "colour": ("color", "jitter", "color_jitter"),
    "erasing": ("cutout", "random_erasing"),
    "precision": ("amp", "dtype", "fp16", "half", "bf16", "fp32", "int8", "quantize", "quantise", "quantization"),
    "calibration_images": ("calibration", "calibrate", "subset_size"),
    "drop": ("max_drop", "max_loss", "accuracy_drop"),
    "minutes": ("time", "max_time", "max_minutes"),
    "seed": ("random_seed", "random_state", "manual_seed"),
    "device": ("gpu", "gpus", "cuda", "cpu", "mps", "accelerator"),
    "threads": ("num_threads", "n_jobs", "jobs", "num_workers", "cores"),
    "workers": ("num_workers", "n_jobs", "jobs", "processes"),
    "weights": ("pretrained", "checkpoint", "ckpt", "load", "finetune", "init"),
    "data": ("dataset", "data_set", "dataset_name", "data_dir", "train_dir", "root"),
    "source": ("data_dir", "root", "mnist"),
    "out_channels": ("out", "filters", "output_channels"),
    "out": ("output", "save", "save_dir", "output_dir", "outdir", "dir", "folder", "path", "logdir", "project"),
    "draw": ("plot", "figure", "fig", "picture", "png", "svg", "output"),
    "to": ("format", "fmt"),
    "input": ("input_size", "input_shape", "image_size", "img_size", "imgsz", "size"),
    "size": ("image_size", "img_size", "imgsz", "resize", "resolution", "input_size"),
    "images": ("count", "num_images", "samples", "limit"),
    "top": ("topk", "top_k", "k"),
    "class": ("target", "label", "class_name"),
    "net": ("model", "arch", "network", "model_name"),
    "pictures": ("images", "image", "img", "picture", "file", "files", "input"),
    "run": ("model", "checkpoint", "ckpt", "weights", "net"),
    "lang": ("language", "locale"),
}


def meant(word: str, known: Iterable[str]) -> str:
    """Return the name among `known` that `word` probably means, by what others call it or by its letters; or ""."""
    names = list(known)
    for name in names:
        if word.lower() in _ALSO.get(name, ()):
            return name
    return next(iter(difflib.get_close_matches(word, names, n=1, cutoff=0.6)), "")
