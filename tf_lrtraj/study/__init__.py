"""The study of the papers' claims: its configuration, tasks, plan and runner.

It has its own trainer, because that of `tf_lrtraj.training` needs TensorFlow's `tf.distribute`, and
a study also runs on JAX and PyTorch without TensorFlow.
"""
