"""Train, evaluate and compare residual networks on retinopathy photographs."""
