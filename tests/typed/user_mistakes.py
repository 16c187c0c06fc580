"""What users get wrong: a type checker must report each line that ends in "# wrong", no other."""

import numpy as np

import adamas
from adamas.typing import Group, LearningRate, StateDtype

array = np.ones((3, 2), np.float32)
weight = adamas.Parameter(array, name="weight")

adamas.Adam([weight], learning_rat=0.1)  # wrong
adamas.Adam([weight], row_policy="lasy")  # wrong
adamas.Adam([weight], numerics="pytorch")  # wrong
adamas.Adam([weight], state_dtype="bflaot16")  # wrong
adamas.Adam([weight], learning_rate="0.1")  # wrong
adamas.Adam([weight], weight_decay=[0.1, 0.2])  # wrong
adamas.Adam([1.0])  # wrong
adamas.Adam({"weight": 1.0})  # wrong
adamas.Adam(weight)  # wrong
adamas.AdamWeightDecay([weight], numerics="torch")  # wrong

adamas.Adam([{"params": [weight], "learningrate": 0.1}])  # wrong
adamas.Adam([{"params": [weight], "lr": "0.1"}])  # wrong
adamas.Adam([{"params": weight}])  # wrong
adamas.Adam([{"lr": 0.1}])  # wrong
adamas.Adam([{"order_params": [array]}])  # wrong
group: Group = {"params": [weight], "weightdecay": 0.1}  # wrong
rate: LearningRate = None  # wrong
state_dtype: StateDtype = "int4"  # wrong

opt = adamas.Adam([weight])
opt(array)  # wrong
opt([0.5])  # wrong
opt.apply(0, array)  # wrong
opt.target = "TPU"  # wrong
opt.global_step = "0"  # wrong
opt.moment1 = []  # wrong
opt.learning_rat = 0.1  # wrong
opt.learning_rate = "0.1"  # wrong
opt.groups[0].learning_rate = 0.1  # wrong
opt.groups[0].lr = None  # wrong
opt.groups[0].beta1 = "0.9"  # wrong
opt.groups[0].use_amsgrad = True  # wrong
opt.beta2 = None  # wrong
opt.steps = 3  # wrong
opt.end_step(missing="ignore")  # wrong
opt.add([1.0])  # wrong
adamas.Adam([weight], epsilon_placement="between")  # wrong
opt.groups[0].grad_centralization = True  # wrong

adamas.Parameter([1.0, 2.0])  # wrong
adamas.RowTensor(np.array([0]), array[:1], "shape")  # wrong
adamas.all_finite(3)  # wrong
adamas.Adamas([weight])  # wrong
