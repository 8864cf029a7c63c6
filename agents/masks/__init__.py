"""Learners that give each task a mask over one shared network.

The literature's masks differ in four ways:

- what is masked: single weights (PackNet, Piggyback, SupSup, WSN), features, that is units or channels (HAT, TFM), or
  kernels of convolutions (KSM);
- its values: binary (most), ternary (TFM: used, trainable, off), or soft (KSM; APD's attention over shared parameters);
- where it comes from: an algorithm fixes it (PackNet, by magnitude), or it is learned (HAT, Piggyback, SupSup, WSN);
- the backbone under it: fixed, so that masks do all the work (Piggyback, SupSup, KSM), or trained with them.

Features: `masked` is what learners with a mask of units share: supports, who reads what, capacity, unlearning. `hat`
protects what other tasks use, `adahat` lets it move a little, `amnesiac_hat` keeps a ledger of what moved it
(`traces`), so that it can be taken back, `overlay_hat` does not let temporary tasks see each other. `tfm` grows.

Weights: `weights` is what learners with a mask of weights share, learning through the weights that a mask leaves.
`fixed` is for those over a backbone that never changes: `piggyback`, `ksm`, `supsup`. `trained` is for those whose
backbone is shared out: `packnet`, `wsn`, `apd`.

`visits` notes in which order tasks were visited, from which the level of unlearning follows.
"""
