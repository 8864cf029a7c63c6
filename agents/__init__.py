"""The learners, one file a method. Names are registered here; classes are imported when they are used."""

from clenv.registry import register_agent

if __name__ != "clenv.agents":
    raise ImportError(f"import this package as clenv.agents, not as {__name__}")

for _name, _path in {
    "adahat": "clenv.agents.adahat:AdaHAT",
    "agem": "clenv.agents.agem:AGEM",
    "amnesiac-hat": "clenv.agents.amnesiac_hat:AmnesiacHAT",
    "anml": "clenv.agents.anml:ANML",
    "ascend": "clenv.agents.buffered:Ascend",
    "blind-last": "clenv.agents.blind:BlindLast",
    "blind-task": "clenv.agents.blind:BlindTask",
    "c-maml": "clenv.agents.c_maml:CMAML",
    "checkpoint-replay": "clenv.agents.retrain:CheckpointReplay",
    "clpu-derpp": "clenv.agents.clpu_derpp:CLPUDERpp",
    "cumulative": "clenv.agents.cumulative:Cumulative",
    "der": "clenv.agents.der:DER",
    "derpp": "clenv.agents.der:DERpp",
    "do-nothing": "clenv.agents.composed:DoNothing",
    "er": "clenv.agents.er:ER",
    "ewc": "clenv.agents.ewc:EWC",
    "ewc-online": "clenv.agents.ewc:OnlineEWC",
    "finetune": "clenv.agents.finetune:Finetune",
    "from-scratch": "clenv.agents.from_scratch:FromScratch",
    "gdumb": "clenv.agents.gdumb:GDumb",
    "gem": "clenv.agents.gem:GEM",
    "hat": "clenv.agents.hat:HAT",
    "hnet": "clenv.agents.hnet:HNET",
    "hnet-ent": "clenv.agents.hnet_inferred:HNETEntropy",
    "hnet-online": "clenv.agents.hnet_online:HNETOnline",
    "hnet-r": "clenv.agents.hnet_replay:HNETReplay",
    "hnet-tir": "clenv.agents.hnet_recognition:HNETRecognition",
    "independent": "clenv.agents.independent:Independent",
    "joint": "clenv.agents.joint:Joint",
    "lwf": "clenv.agents.lwf:LwF",
    "mas": "clenv.agents.mas:MAS",
    "meta-mask": "clenv.agents.meta_mask:MetaMask",
    "reinit-all": "clenv.agents.buffered:ReinitAll",
    "reinit-head": "clenv.agents.composed:ReinitHead",
    "retrain": "clenv.agents.retrain:Retrain",
    "si": "clenv.agents.si:SI",
    "subtract": "clenv.agents.subtract:Subtract",
}.items():
    register_agent(_name, _path)
