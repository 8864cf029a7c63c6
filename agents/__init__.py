"""The learners, one file a method, by families. Names are registered here; classes are imported when they are used.

A family imports its own files and `networks`; what else it needs of another one stands in `BETWEEN_FAMILIES`, and a
test holds it to that.
"""

from clenv.registry import register_agent

if __name__ != "clenv.agents":
    raise ImportError(f"import this package as clenv.agents, not as {__name__}")

BETWEEN_FAMILIES = {
    "hypernetworks": ("references.finetune",),  # a plain classifier, kept by generated replay
    "masks": (
        "references.finetune",  # how a network is trained that masks are then put over
        "rehearsal.memory",  # damage is repaired with kept examples
    ),
    "plasticity": ("references.finetune",),  # what stays as it is but for the units drawn anew
    "references": ("regularisation.consolidating", "rehearsal.memory", "rehearsal.offline", "rehearsal.rehearsing"),
    "regularisation": ("references.finetune", "rehearsal.rehearsing"),
    "rehearsal": ("references.finetune", "regularisation.consolidating"),
    "unlearning": ("references.finetune", "rehearsal.memory"),
}
"""What a family imports of others."""

for _name, _path in {
    "adahat": "clenv.agents.masks.adahat:AdaHAT",
    "agem": "clenv.agents.rehearsal.agem:AGEM",
    "amnesiac-hat": "clenv.agents.masks.amnesiac_hat:AmnesiacHAT",
    "anml": "clenv.agents.meta.anml:ANML",
    "apd": "clenv.agents.masks.apd:APD",
    "ascend": "clenv.agents.unlearning.buffered:Ascend",
    "blind-last": "clenv.agents.references.blind:BlindLast",
    "blind-task": "clenv.agents.references.blind:BlindTask",
    "c-maml": "clenv.agents.meta.c_maml:CMAML",
    "cbp": "clenv.agents.plasticity.cbp:CBP",
    "checkpoint-replay": "clenv.agents.unlearning.retrain:CheckpointReplay",
    "clpu-derpp": "clenv.agents.rehearsal.clpu_derpp:CLPUDERpp",
    "ctr": "clenv.agents.masks.ctr:CTR",
    "cumulative": "clenv.agents.references.cumulative:Cumulative",
    "der": "clenv.agents.rehearsal.der:DER",
    "derpp": "clenv.agents.rehearsal.der:DERpp",
    "do-nothing": "clenv.agents.unlearning.composed:DoNothing",
    "er": "clenv.agents.rehearsal.er:ER",
    "ewc": "clenv.agents.regularisation.ewc:EWC",
    "ewc-online": "clenv.agents.regularisation.ewc:OnlineEWC",
    "fix": "clenv.agents.references.untrained:Fix",
    "fg-adahat": "clenv.agents.masks.fg_adahat:FGAdaHAT",
    "finetune": "clenv.agents.references.finetune:Finetune",
    "from-scratch": "clenv.agents.references.from_scratch:FromScratch",
    "gdumb": "clenv.agents.rehearsal.gdumb:GDumb",
    "gem": "clenv.agents.rehearsal.gem:GEM",
    "hat": "clenv.agents.masks.hat:HAT",
    "hnet": "clenv.agents.hypernetworks.hnet:HNET",
    "hnet-ent": "clenv.agents.hypernetworks.hnet_inferred:HNETEntropy",
    "hnet-online": "clenv.agents.hypernetworks.hnet_online:HNETOnline",
    "hnet-r": "clenv.agents.hypernetworks.hnet_replay:HNETReplay",
    "hnet-tir": "clenv.agents.hypernetworks.hnet_recognition:HNETRecognition",
    "independent": "clenv.agents.references.independent:Independent",
    "joint": "clenv.agents.references.joint:Joint",
    "ksm": "clenv.agents.masks.ksm:KSM",
    "l2": "clenv.agents.regularisation.l2:L2",
    "lwf": "clenv.agents.regularisation.lwf:LwF",
    "mas": "clenv.agents.regularisation.mas:MAS",
    "meta-mask": "clenv.agents.meta.meta_mask:MetaMask",
    "newton": "clenv.agents.unlearning.newton:Newton",
    "overlay-hat": "clenv.agents.masks.overlay_hat:OverlayHAT",
    "packnet": "clenv.agents.masks.packnet:PackNet",
    "packnet-grow": "clenv.agents.masks.packnet_grow:PackNetGrow",
    "pall": "clenv.agents.masks.pall:PALL",
    "piggyback": "clenv.agents.masks.piggyback:Piggyback",
    "reinit-all": "clenv.agents.unlearning.buffered:ReinitAll",
    "reinit-head": "clenv.agents.unlearning.composed:ReinitHead",
    "retrain": "clenv.agents.unlearning.retrain:Retrain",
    "si": "clenv.agents.regularisation.si:SI",
    "supsup": "clenv.agents.masks.supsup:SupSup",
    "subtract": "clenv.agents.unlearning.subtract:Subtract",
    "tfm": "clenv.agents.masks.tfm:TFM",
    "uncle": "clenv.agents.hypernetworks.uncle:UnCLe",
    "uniform": "clenv.agents.unlearning.buffered:Uniform",
    "untrained": "clenv.agents.references.untrained:Untrained",
    "wsn": "clenv.agents.masks.wsn:WSN",
}.items():
    register_agent(_name, _path)
