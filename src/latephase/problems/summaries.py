"""What a list of this package's problems says of each, so that listing them makes none. No torch here."""

from typing import NamedTuple


class Summary(NamedTuple):
    """A problem in a line.

    Attributes:
        module: of its function, which has the problem's name.
        parameters: of its model, with the options' defaults.
        dataset: that it reads; None where it reads none.
        title: what it is.
    """

    module: str
    parameters: int
    dataset: str | None
    title: str


SUMMARIES = {
    "digits": Summary("digits", 38_282, None, "CNN on digits"),
    "cifar10_3c3d": Summary("deepobs", 895_210, "cifar10", "3C3D on CIFAR-10"),
    "cifar100_allcnnc": Summary("deepobs", 1_387_108, "cifar100", "ALL-CNN-C on CIFAR-100"),
    "svhn_wrn164": Summary("deepobs", 2_748_890, "svhn", "WRN-16-4 on SVHN"),
    "fmnist_2c2d": Summary("deepobs", 3_274_634, "fashion_mnist", "2C2D on Fashion-MNIST"),
    "fmnist_cnn": Summary("classifiers", 206_922, "fashion_mnist", "CNN on Fashion-MNIST"),
    "mnist_mlp": Summary("deepobs", 1_336_610, "mnist", "MLP on MNIST"),
    "quadratic_deep": Summary("functions", 100, None, "Noisy quadratic"),
    "mnist_autoencoder": Summary("autoencoders", 2_837_314, "mnist", "autoencoder on MNIST"),
    "curves_autoencoder": Summary("autoencoders", 842_340, None, "autoencoder on curves"),
    "faces_autoencoder": Summary("autoencoders", 7_537_655, "olivetti_faces", "autoencoder on faces"),
    "mnist_lstm": Summary("classifiers", 332_554, "mnist", "LSTM on sequential MNIST"),
    "cifar10_resnet20": Summary("classifiers", 269_722, "cifar10", "ResNet-20 on CIFAR-10"),
    "rnn_addition": Summary("pathological", 10_501, None, "RNN: addition"),
    "rnn_multiplication": Summary("pathological", 10_501, None, "RNN: multiplication"),
    "rnn_xor": Summary("pathological", 10_501, None, "RNN: XOR"),
    "rnn_temporal_order": Summary("pathological", 11_404, None, "RNN: temporal order"),
    "rnn_temporal_order_3bit": Summary("pathological", 11_808, None, "RNN: temporal order, 3 bits"),
    "rosenbrock": Summary("functions", 2, None, "Rosenbrock's function"),
    "uci_energy": Summary("regression", 501, "uci_energy", "MLP on UCI Energy"),
    "uci_protein": Summary("regression", 1_101, "uci_protein", "MLP on UCI Protein"),
    "fmnist_mlp50": Summary("classifiers", 39_760, "fashion_mnist", "MLP on Fashion-MNIST"),
    "cifar10_resnet18": Summary("classifiers", 11_181_642, "cifar10", "ResNet-18 on CIFAR-10"),
    "svhn_resnet18": Summary("classifiers", 11_181_642, "svhn", "ResNet-18 on SVHN"),
    "shakespeare_lstm": Summary("text", 280_897, "tiny_shakespeare", "LSTM on Shakespeare"),
    "shakespeare_gpt": Summary("text", 818_176, "tiny_shakespeare", "GPT on Shakespeare"),
    "pinn_convection": Summary("pinn", 81_201, None, "PINN: convection"),
    "pinn_reaction": Summary("pinn", 81_201, None, "PINN: reaction"),
    "pinn_wave": Summary("pinn", 81_201, None, "PINN: wave"),
    "pinn_burgers": Summary("pinn", 1_341, None, "PINN: Burgers"),
    "pinn_allen_cahn": Summary("pinn", 1_981, None, "PINN: Allen-Cahn"),
    "pinn_kdv": Summary("pinn", 1_981, None, "PINN: Korteweg-de Vries"),
    "pinn_helmholtz": Summary("pinn", 1_297, None, "PINN: Helmholtz"),
    "pinn_poisson2d": Summary("pinn", 1_185, None, "PINN: Poisson, 2D"),
    "pinn_poisson5d": Summary("pinn", 1_281, None, "PINN: Poisson, 5D"),
    "pinn_poisson10d": Summary("pinn", 1_441, None, "PINN: Poisson, 10D"),
    "pinn_heat1d": Summary("pinn", 1_185, None, "PINN: heat, 1+1D"),
    "pinn_heat4d": Summary("pinn", 1_281, None, "PINN: heat, 4+1D"),
}
"""In the order of the papers. A test holds each to the problem itself."""
