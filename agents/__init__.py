"""The learners, one file a method. Names are registered here; classes are imported when they are used."""

from clenv.registry import register_agent

if __name__ != "clenv.agents":
    raise ImportError(f"import this package as clenv.agents, not as {__name__}")

for _name, _path in {
    "adahat": "clenv.agents.adahat:AdaHAT",
    "amnesiac-hat": "clenv.agents.amnesiac_hat:AmnesiacHAT",
    "blind-last": "clenv.agents.blind:BlindLast",
    "blind-task": "clenv.agents.blind:BlindTask",
    "c-maml": "clenv.agents.c_maml:CMAML",
    "clpu-derpp": "clenv.agents.clpu_derpp:CLPUDERpp",
    "der": "clenv.agents.der:DER",
    "derpp": "clenv.agents.der:DERpp",
    "er": "clenv.agents.er:ER",
    "ewc": "clenv.agents.ewc:EWC",
    "ewc-online": "clenv.agents.ewc:OnlineEWC",
    "finetune": "clenv.agents.finetune:Finetune",
    "from-scratch": "clenv.agents.from_scratch:FromScratch",
    "hat": "clenv.agents.hat:HAT",
    "hnet": "clenv.agents.hnet:HNET",
    "hnet-ent": "clenv.agents.hnet_inferred:HNETEntropy",
    "hnet-r": "clenv.agents.hnet_replay:HNETReplay",
    "hnet-tir": "clenv.agents.hnet_recognition:HNETRecognition",
    "hnet-online": "clenv.agents.hnet_online:HNETOnline",
    "independent": "clenv.agents.independent:Independent",
    "lwf": "clenv.agents.lwf:LwF",
    "mas": "clenv.agents.mas:MAS",
    "meta-mask": "clenv.agents.meta_mask:MetaMask",
    "si": "clenv.agents.si:SI",
}.items():
    register_agent(_name, _path)
