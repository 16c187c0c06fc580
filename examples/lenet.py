"""LeNet-5 in plain NumPy, float32: the network that train_lenet.py trains.

Images are (batch, channels, height, width). A layer owns its arrays, and the Parameters wrap the
same memory: what the optimizer writes there, the next forward reads. Nothing is ever copied back.

LeCun, Bottou, Bengio, Haffner: Gradient-based learning applied to document recognition, 1998.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import adamas


class Layer:
    """A function with a derivative. Layers that learn also list parameters and their gradients."""

    parameters = ()
    gradients = ()

    def forward(self, inputs):
        """Return the outputs and remember what ``backward`` will need."""
        raise NotImplementedError

    def backward(self, grad):
        """Turn d loss / d outputs into d loss / d inputs, and set ``gradients`` on the way."""
        raise NotImplementedError


class Affine(Layer):
    """What dense and convolution layers share: ``rows @ weight.T + bias`` and its gradients."""

    def __init__(self, name, weight_shape, rng):
        self.fan_in = int(np.prod(weight_shape[1:]))
        # He et al. 2015: with this variance ReLU neither blows up nor kills the signal.
        scale = (2 / self.fan_in) ** 0.5
        self.weight = rng.normal(0.0, scale, weight_shape).astype(np.float32)
        self.bias = np.zeros(weight_shape[0], np.float32)
        self.parameters = (
            adamas.Parameter(self.weight, name=f"{name}.weight"),
            adamas.Parameter(self.bias, name=f"{name}.bias"),
        )

    def affine(self, inputs):
        """Map the last axis, from ``fan_in`` values to one per row of the weight."""
        self.rows = inputs.reshape(-1, self.fan_in)
        outputs = self.rows @ self.weight.reshape(-1, self.fan_in).T + self.bias
        return outputs.reshape(*inputs.shape[:-1], len(self.weight))

    def set_gradients(self, grad):
        """Take d loss / d outputs of ``affine``; set those of weight and bias."""
        grad = grad.reshape(-1, len(self.weight))
        self.gradients = ((grad.T @ self.rows).reshape(self.weight.shape), grad.sum(axis=0))


class Dense(Affine):
    """A fully connected layer: (batch, inputs) -> (batch, outputs)."""

    def __init__(self, name, inputs, outputs, rng):
        super().__init__(name, (outputs, inputs), rng)

    def forward(self, inputs):
        """Multiply by the weight matrix."""
        return self.affine(inputs)

    def backward(self, grad):
        """Multiply by its transpose."""
        self.set_gradients(grad)
        return grad @ self.weight


class Conv2d(Affine):
    """A convolution with square kernels, done as one matrix product over unfolded patches."""

    def __init__(self, name, inputs, outputs, kernel, rng, padding=0):
        super().__init__(name, (outputs, inputs, kernel, kernel), rng)
        self.kernel = kernel
        self.padding = padding

    def forward(self, inputs):
        """Multiply every patch of the images by the kernels."""
        patches = unfold(inputs, self.kernel, self.padding)
        return self.affine(patches).transpose(0, 3, 1, 2)

    def backward(self, grad):
        """Convolve with the kernels turned by 180 degrees, input and output channels swapped."""
        self.set_gradients(grad.transpose(0, 2, 3, 1))
        patches = unfold(grad, self.kernel, self.kernel - 1 - self.padding)
        batch, height, width, length = patches.shape
        turned = self.weight[:, :, ::-1, ::-1].transpose(0, 2, 3, 1).reshape(length, -1)
        grad_rows = patches.reshape(-1, length) @ turned
        return grad_rows.reshape(batch, height, width, -1).transpose(0, 3, 1, 2)


class AveragePool(Layer):
    """Halve height and width: each output is the mean of a 2 x 2 square."""

    def forward(self, inputs):
        """Average the squares."""
        batch, channels, height, width = inputs.shape
        squares = inputs.reshape(batch, channels, height // 2, 2, width // 2, 2)
        return squares.mean(axis=(3, 5))

    def backward(self, grad):
        """Give a quarter of the gradient to each of the four pixels."""
        return (grad * np.float32(0.25)).repeat(2, axis=2).repeat(2, axis=3)


class ReLU(Layer):
    """The activation: with this optimizer it learned faster and better than the paper's tanh."""

    def forward(self, inputs):
        """Replace negative values by zero."""
        self.outputs = np.maximum(inputs, 0)
        return self.outputs

    def backward(self, grad):
        """Let the gradient pass where the value passed."""
        return grad * (self.outputs > 0)


class Flatten(Layer):
    """One row per image, for the dense layers."""

    def forward(self, inputs):
        """(batch, channels, height, width) -> (batch, values)."""
        self.shape = inputs.shape
        return inputs.reshape(len(inputs), -1)

    def backward(self, grad):
        """Undo the reshape."""
        return grad.reshape(self.shape)


class LeNet5:
    """LeNet-5 for 16 x 16 images: two convolutions, three dense layers, 10 classes."""

    def __init__(self, rng):
        self.layers = [
            Conv2d("conv1", 1, 6, kernel=5, rng=rng, padding=2),  # 6 x 16 x 16
            ReLU(),
            AveragePool(),  # 6 x 8 x 8
            Conv2d("conv2", 6, 16, kernel=5, rng=rng),  # 16 x 4 x 4
            ReLU(),
            AveragePool(),  # 16 x 2 x 2
            Flatten(),
            Dense("dense1", 64, 120, rng),
            ReLU(),
            Dense("dense2", 120, 84, rng),
            ReLU(),
            Dense("dense3", 84, 10, rng),
        ]

    def parameters(self):
        """List all Parameters, first layer first; always the same objects."""
        return [param for layer in self.layers for param in layer.parameters]

    def gradients(self):
        """List the gradients of the last ``backward``, in the order of ``parameters()``."""
        return [grad for layer in self.layers for grad in layer.gradients]

    def forward(self, images):
        """Compute the logits, (batch, 10), of images (batch, 1, 16, 16)."""
        values = images
        for layer in self.layers:
            values = layer.forward(values)
        return values

    def backward(self, grad):
        """Propagate d loss / d logits back through all layers."""
        for layer in reversed(self.layers):
            grad = layer.backward(grad)

    def predict(self, images):
        """Return the most likely class of each image."""
        return self.forward(images).argmax(axis=1)


def cross_entropy(logits, labels):
    """Return the mean cross entropy of the batch and its gradient with respect to the logits."""
    shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp cannot overflow
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    rows = np.arange(len(labels))
    loss = -log_probabilities[rows, labels].mean()
    grad = np.exp(log_probabilities)
    grad[rows, labels] -= 1
    return float(loss), grad / np.float32(len(labels))


def unfold(images, kernel, padding):
    """Lay out the patch around each output pixel: (batch, height', width', channels * kernel^2)."""
    border = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    windows = sliding_window_view(np.pad(images, border), (kernel, kernel), axis=(2, 3))
    batch, channels, height, width = windows.shape[:4]
    patches = windows.transpose(0, 2, 3, 1, 4, 5)
    return patches.reshape(batch, height, width, channels * kernel * kernel)
