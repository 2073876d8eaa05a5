"""The study of the papers' claims: its configuration, tasks, plan and runner.

Its trainer is a second one because that of `tf_lrtraj.training` rests on TensorFlow's
`tf.distribute`, and a study runs on JAX and PyTorch without TensorFlow.
"""
