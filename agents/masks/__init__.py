"""Learners that give each task a mask over one shared network.

The literature's masks differ in four ways:

- what is masked: single weights (PackNet, Piggyback, SupSup, WSN), features, that is units or channels (HAT, TFM, CTR),
  or kernels of convolutions (KSM);
- its values: binary (most), ternary (TFM: used, trainable, off), or soft (KSM; APD's attention over shared parameters);
- where it comes from: an algorithm fixes it (PackNet, by magnitude), or it is learned (HAT, Piggyback, SupSup, WSN);
- the backbone under it: fixed, so that masks do all the work (Piggyback, SupSup, KSM, CTR), or trained with them.

Here: learned masks of features over a trained backbone. `masked` is what such learners share: supports, who reads what,
capacity, unlearning. `hat` protects what other tasks use, `adahat` lets it move a little, `amnesiac_hat` keeps a ledger
of what moved it (`traces`), so that it can be taken back.
"""
