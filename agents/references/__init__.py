"""Points of reference: what a method is measured against, from below and from above.

Below: plain training (`finetune`), starting anew (`from_scratch`), learning nothing or the first task alone
(`untrained`), not looking (`blind`). Above: a network a task
(`independent`), all data kept and learned from online (`cumulative`) or offline (`joint`).
"""
