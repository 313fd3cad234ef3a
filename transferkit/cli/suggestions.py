"""The option meant by an unknown one: by the names that other tools have for it, otherwise by its letters."""

import difflib
from collections.abc import Sequence

# Last part of an option -> names that other tools have for it, without underscores.
ALIASES = {
    "max_epochs": "epoch epochs nepochs numepochs numtrainepochs trainepochs maxepoch",
    "max_steps": "steps nsteps numsteps iterations maxiter iters",
    "lr_head": "lr learningrate baselr headlr lr0 rate lrate stepsize",
    "lr_backbone": "backbonelr encoderlr finetunelr lrencoder lrfeatures",
    "layer_decay": "llrd lrdecay layerwisedecay",
    "weight_decay": "wd decay l2reg",
    "optimizer": "optim opt optimiser solver",
    "warmup_epochs": "warmup warmupsteps lrwarmup",
    "label_smoothing": "smoothing labelsmooth",
    "dropout": "drop droprate",
    "batch_size": "bs batch batchsize trainbatchsize perdevicetrainbatchsize minibatch minibatchsize",
    "num_workers": "workers nworkers numworkers jobs dataloadernumworkers",
    "root": "dir path datadir datapath dataroot datasetdir folder images dataset traindir imgdir imagedir",
    "val_fraction": "valsplit validationsplit valratio valsize valpct validpct validationfraction",
    "test_fraction": "testsplit testratio testsize",
    "augmentation": "aug augment augmentations autoaugment aa transforms",
    "class_weights": "classweight balanced weighting",
    "n_per_class": "shots fewshot kshot perclass nshot",
    "backbone": "arch architecturename net network encoder modelname modelnameorpath extractor timm",
    "extractor": "arch net network encoder model modelname modelnameorpath backbone",
    "extractors": "extractor model models backbone backbones networks",
    "weights": "pretrained pretrainedweights initcheckpoint",
    "regime": "freeze frozen freezebackbone finetune unfreeze trainbackbone mode",
    "unfreeze_last": "unfreezelayers unfreezeblocks lastlayers",
    "preprocessing": "imagesize imgsize inputsize size resolution imgsz crop resize mean std",
    "precision": "amp fp16 bf16 half mixedprecision dtype",
    "accelerator": "device gpu cuda cpu mps",
    "devices": "gpus ngpus numgpus ndevices nprocpernode worldsize",
    "default_root_dir": "out output outdir outputdir savedir logdir rundir project runs",
    "out": "output outputdir outdir savedir dest destination outputfile",
    "ckpt_path": "checkpoint ckpt resume resumefrom loadfrom resumefromcheckpoint checkpointpath",
    "callbacks": "callback",
    "patience": "earlystop earlystopping earlystoppingpatience",
    "ema": "modelema averaging movingaverage swa",
    "lora": "peft adapter adapters lorarank loraalpha",
    "mixup": "mixupalpha",
    "cutmix": "cutmixalpha",
    "logger": "wandb tensorboard reportto",
    "seed_everything": "seed randomseed manualseed randomstate",
    "seed": "seedeverything randomseed randomstate",
    "name": "experiment experimentname runname exp expname",
    "top_k": "topk k",
    "k": "topk top neighbors neighbours numresults",
    "gradient_clip_val": "clip gradclip clipgrad maxgradnorm clipnorm gradientclip",
    "accumulate_grad_batches": "gradaccum accumulate gradaccumsteps gradientaccumulationsteps accumulation",
    "fast_dev_run": "debugrun dryrun smoke",
    "json": "asjson jsonoutput",
}


def nearest(name: str, known: Sequence[str]) -> str | None:
    """Return the option that an unknown name most likely means, or None.

    In this order: an option with the same last part, in any section; one that other tools call by this name; the
    option with the most similar letters, in its last part or the whole name.

    Args:
        name: without leading dashes, with or without its section.
        known: the options, with their sections.
    """
    section, end = name.split(".")[0], fold(name.split(".")[-1])
    ordered = sorted(known, key=lambda option: not option.startswith(f"{section}."))  # its own section first
    last: dict[str, str] = {}
    for option in ordered:
        last.setdefault(fold(option.split(".")[-1]), option)
    meant = [last[fold(ours)] for ours, theirs in ALIASES.items() if end in theirs.split() and fold(ours) in last]
    if end in last or meant:
        return last.get(end) or min(meant, key=ordered.index)
    near = [last[found] for found in difflib.get_close_matches(end, last, n=1, cutoff=0.6)]
    if not near and section not in known:  # otherwise its section alone would make it similar
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return near[0] if near else None


def fold(name: str) -> str:
    """Return a name in lower case, without dashes and underscores."""
    return name.lower().replace("-", "").replace("_", "")
